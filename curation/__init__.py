"""The curation jobs: profiles, units, the Ray Data graph, the ledger and the funnel."""
