"""Raw T1 scans: read, registered to the template, judged."""
