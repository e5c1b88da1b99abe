// Whose combination is this? A system is a recipe: a predictor, a rule of prefetching and an
// eviction policy. All of them run on the same engine, lanes, slots, pools and bytes.
//
// One file per system tells in words what it does and where it comes from, and what of it is
// modelled. This is the only table of systems: --system, --systems, prophet_moe.load and the
// simulator take their names from it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "policy/prefetch_policy.h"

namespace prophet {

// What a system must be given. Where it is not there, the system is left out by name.
struct Needs {
  // "": no predictor. "bank" and "layer-mlp" come from a file that `prophet train` wrote for this
  // system, as does "text"; "emulator" is the simulator's own; others are names of make_predictor.
  std::string_view predictor = "";
  bool trained = false;   // a file
  bool hidden = false;    // what routers read, of a model or in the trace
  bool entering = false;  // what enters each layer, before its attention; the same
  bool tokens = false;    // the ids of the tokens fed; the same
  bool router = false;    // the routers' weights
  bool gates = false;     // does better with hidden states and the routers' weights, where they are
  bool future = false;    // only a replay has it
};

// A part of a system that changes the model's outputs. Off unless asked for by name; a simulation
// then counts its bytes and nothing else of it.
struct Lossy {
  std::string_view what = "";  // empty: the system has none
  double bytes = 1;            // of an expert that still move
};

struct Recipe {
  enum class Bound {
    none,
    misses,     // knows the future: misses that no policy can go below
    foresight,  // knows the future: what perfect prefetching is worth
    time,       // knows the future: a time that no system with these slots can go below
    resident    // has every expert in fast memory
  };

  std::string_view name;
  std::string_view what;    // one sentence
  std::string_view source;  // arXiv id, or words
  std::string_view modelled, not_modelled;
  Needs needs;
  std::string_view policy = "lru";
  bool keep = true;  // false: every expert is dropped after its use
  PrefetchRule prefetch;
  // Only this many more than top_k of a layer's likeliest experts are forecast; negative: all.
  int widen = -1;
  double recall = 1;        // of the emulator
  bool next_token = false;  // the emulator reaches into the next token
  Bound bound = Bound::none;
  Lossy lossy;
};

// In the order of tables: floors, eviction alone, published systems, Prophet, bounds.
const std::vector<Recipe>& recipes();
// Throws InvalidArgument for an unknown name; the sentence lists the known ones.
const Recipe& recipe(std::string_view name);

}  // namespace prophet
