"""The training side: what comes out of a store on its way into a network."""
