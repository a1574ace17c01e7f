"""Some pictures of a data set, in an order of one's own."""


class Subset:
    """The pictures `indices` of `dataset`, which may repeat; all else is as with `dataset`."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, list(indices)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.dataset[self.indices[i]]

    @property
    def pairs(self):
        """The (image path, mask path) of each, where the data set is one of files."""
        return [self.dataset.pairs[i] for i in self.indices]

    def __getattr__(self, name):
        # Only what is not found above comes here; a copy being made has no `dataset` yet.
        if name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)
