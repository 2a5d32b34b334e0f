"""The gateway: clients on one side, the scheduler on the other, and the promise that nothing accepted is lost."""
