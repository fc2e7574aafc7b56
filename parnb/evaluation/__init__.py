"Embeddings, metrics and statistics."
