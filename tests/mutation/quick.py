"""A plugin of pytest for mutants: an example that fails is enough, and needs not to be made smaller."""

from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
settings.load_profile("mutants")
