"""The paper, reproduced: a file for each table and figure, from a `Study` to a `Result`."""
