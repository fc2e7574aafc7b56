"Detectors: methods that score a model, an input or a data set as suspicious. One module per method."
