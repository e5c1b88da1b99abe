"""What Prophet writes to disk and reads again: safetensors files with metadata (docs/formats.md)."""
