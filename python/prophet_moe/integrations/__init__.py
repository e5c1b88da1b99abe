"""Prophet inside engines of others, one package for each; they are imported only where asked for."""
