"""The campaign against faults: whatever comes in or happens, a command succeeds or says what is wrong.

`python -m attack PART` (with tests/ and tests/helpers/ on PYTHONPATH) runs one part, `make attack` all of them:
fuzz, faults, pairs, truncation, resume, soak. Every part is seeded, and writes its outcomes as JSON.
"""
