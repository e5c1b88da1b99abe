"""What Prophet writes to disk and reads again, each a safetensors file with its own metadata (docs/formats.md)."""
