"""From a folder of scans and a table to a configuration: what each column is, what is predicted."""
