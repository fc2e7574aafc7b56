"The command `parnb`."
