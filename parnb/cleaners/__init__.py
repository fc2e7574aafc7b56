"Cleaners: methods that remove a backdoor from a trained CLIP model. One module per method."
