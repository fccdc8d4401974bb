"""MEGA as far as the table of drivers knows it; what speaks to it is megafs/mega/."""
