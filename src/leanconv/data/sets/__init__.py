"""Where labelled images and videos come from: one reader for each layout, one file for each reader."""
