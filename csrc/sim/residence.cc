#include "sim/residence.h"

#include <bit>

namespace prophet {

Residence::Residence(const Geometry& geometry)
    : geometry_(geometry), places_(geometry.total()), turns_(geometry.layers) {}

void Residence::happened(const Event& event) {
  switch (event.kind) {
    case EventKind::layer_step:
      ++turns_[event.key.layer];
      break;
    case EventKind::read_demand:
    case EventKind::read_prefetch:
      arrived(event.key, event.end);
      break;
    case EventKind::evicted:
      left(event.key, event.end);
      break;
    default:
      break;
  }
}

void Residence::arrived(ExpertKey key, Nanos now) {
  Place& place = places_[geometry_.index(key)];
  const std::int64_t turn = turns_[key.layer];
  if (place.state == State::gone) {
    for (std::size_t i = 0; i < Stays::kSoon.size(); ++i) {
      if (turn - place.turn <= Stays::kSoon[i]) ++stays_.back[i];
    }
  }
  place = {now, turn, State::here};
}

void Residence::left(ExpertKey key, Nanos now) {
  Place& place = places_[geometry_.index(key)];
  const std::int64_t turn = turns_[key.layer];
  if (place.state == State::here) {
    const std::int64_t stayed = turn - place.turn;
    stays_.turns.add(stayed);
    stays_.time.add(now - place.since);
    const std::size_t power = stayed < 2 ? 0 : std::bit_width(std::uint64_t(stayed)) - 1;
    if (stays_.by_power.size() <= power) stays_.by_power.resize(power + 1);
    ++stays_.by_power[power];
  }
  place = {now, turn, State::gone};
}

void Residence::forget() { places_.assign(places_.size(), {}); }

}  // namespace prophet
