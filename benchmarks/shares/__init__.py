"""How much of a skill arrives, by strength and by rank, on minis and real encoders."""
