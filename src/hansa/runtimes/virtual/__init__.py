"""A fleet's time: devices with speeds, links, hours and drop-outs, and a runtime whose clock is theirs."""
