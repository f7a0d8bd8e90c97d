"""The paper, reproduced: for each table and figure, a function from a `Study` to a `Result`."""
