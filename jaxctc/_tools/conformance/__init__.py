"""Cases with right answers, usable on any implementation of CTC in any framework."""
