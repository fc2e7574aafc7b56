"CLIP models: loading, saving and encoding."
