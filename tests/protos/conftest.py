"""Properties are judged by their result, not by the clock of a busy machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("protos", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("protos")
