"""Its place puts the helpers of this folder on the path of all tests."""
