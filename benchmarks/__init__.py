"""Speed, measured in pairs and reported as ratios; never asserted by a timed test."""
