"""The tools on thousands of small cases: time, processor time and memory against their number."""
