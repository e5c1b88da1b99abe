"""A loaded model behind an HTTP server that speaks OpenAI's dialect (docs/serving.md)."""
