"""Directory MESI: `node.CacheNode` joins the home's side (directory) and the requester's (agent).

Pure: events and the time go in, effects come out. What must not live here: main memory, sockets,
where a key's home is (the ring decides; a function is passed in).
"""
