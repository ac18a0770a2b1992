"""The tests of patchloom. A package, so that spawned processes can import its functions."""
