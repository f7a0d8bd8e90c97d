"""The paper, reproduced: its tables and figures, listed in `registry`.

Each table or figure is a function from a `Study` to a `Result`; those that share their measurement
share a file: Figures 3 and 9 to 12 are in `curves`, Tables 2 and 5 and Figures 5 and 8 in `words`.
"""
