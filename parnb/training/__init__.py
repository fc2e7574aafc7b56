"Training: recipes, objectives and the loop that pretraining, poisoning and cleaning share."
