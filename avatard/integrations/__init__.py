"""avatard inside agent frameworks: LiveKit Agents and pipecat. Their packages are imported by their module only."""
