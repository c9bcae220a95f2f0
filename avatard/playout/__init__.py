"""What is played when: pure, without I/O and without a clock."""
