def encode(*a): raise NotImplementedError
def decode(*a): raise NotImplementedError
def tally(*a): raise NotImplementedError
