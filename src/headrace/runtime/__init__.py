"""Running a plan: tasks as synchronous state machines, and the thin shell that feeds them."""
