"""What holds for all tests."""

from hypothesis import settings

# how long an example takes is the machine's affair, not the test's
settings.register_profile("sereno", deadline=None)
settings.load_profile("sereno")
