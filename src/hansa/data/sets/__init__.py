"""Named data sets: those inside scikit-learn, and larger ones from the folder that HANSA_DATA names. One file each."""
