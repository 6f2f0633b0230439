"""hal serve: an OpenAI-compatible server around one model, with the engine in a process of its own.

`server.run(settings)` is the way in. The server's process validates, tokenizes, queues and streams (app, protocol,
prompts, dispatch, generation); a worker process loads the model and runs the engine (worker), and a supervisor starts,
watches and replaces it. Only `hal serve` imports this: it needs the packages of attention-hal[serve].
"""
