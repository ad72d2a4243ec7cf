"""`hfrt tune`: which settings of a training give the best figure on the validation part."""
