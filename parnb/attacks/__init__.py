"Attacks: triggers, and how they poison pairs."
