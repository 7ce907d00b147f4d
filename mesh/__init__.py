"""The one-machine run and the command line: `mesh up`, `mesh demo`, `mesh token`."""
