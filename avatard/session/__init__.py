"""One avatar: speakers, play-out loop, events, turn-taking and load control."""
