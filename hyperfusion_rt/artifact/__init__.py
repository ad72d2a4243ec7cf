"""The contract between export and runtime: the manifest, the plan, their description."""
