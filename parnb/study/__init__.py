"The study of runs: descriptions, artifacts, results, plans and reproduction."
