"""The report of a run or a decision: one HTML file that needs nothing but itself."""
