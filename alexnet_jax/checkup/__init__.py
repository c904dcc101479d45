"""What `doctor` looks at: each process finds, all together conclude."""
