"""What can be typed after `antlm-bench`: one file per verb, each the typed flags of one function."""
