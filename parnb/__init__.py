__version__ = "0.2.0"


def __getattr__(name):
    if name == "load_model":  # on first use, since torch takes seconds to load
        from .study.zoo import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
