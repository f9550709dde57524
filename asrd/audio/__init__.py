"""Audio in: files of any kind, microphones, levels, resampling, voice activity detection.

A file imports only from files above it, and from packages below this one.

    format                    the format of all audio behind the sources: mono float32 at one rate
    channels                  several channels -> one: their mean, or the loudest where they cancel (pure)
    library_noise             what a library in C prints by itself: out of standard error, into the debug log
    formats.layout            bytes of a file that a decoder is given, whatever lies around them; tags, padding (pure)
    formats.mpeg              MP3 frame by frame: how many, joined files, the last one (pure)
    formats.ends              where the audio of a file ends: by its header, and by what follows it (pure)
    formats.chunked           the headers of WAV, RF64, Wave64, AIFF, CAF, 8SVX and AU (pure)
    formats.fixed_headers     the headers of SPH, VOC, AVR, HTK, MAT and what else is one header and samples (pure)
    formats.packets           media files of packets (mpg, rm, thd, dts, avi, wma): whether the last one is whole (pure)
    formats.streams           Ogg and FLAC: streams that follow each other in one file (pure)
    formats.containers        what a sound file holds by its own bytes: its streams, and whether its end is missing
    formats.decoder_messages  what libsndfile and libav complain of, in words of ours (pure)
    formats.sndfile           one stream through libsndfile, to its end
    formats.media             what libsndfile cannot decode (m4a, mp4, webm ...), by a process of its own
    formats.media_decoder     a process of its own that decodes one open file by PyAV or ffmpeg
    blocks                    AudioBlock: samples with their place on the sample clock; samples made safe
    files                     AudioBlock; sound files of any kind -> float32 mono 16 kHz
    levels                    how loud sound is: its speech, what is between, what was cut off (pure)
    resampling                sound at any rate, in pieces of any size -> blocks of 20 ms on the clock
    sound_access              why nothing can be recorded: each link from sound server to PortAudio, and what mends it
    alsa_config               whether PortAudio can start with ALSA's configuration, which else ends the process
    sound_server              what PipeWire or PulseAudio says: its sources, and that they changed
    devices                   what there is to record from, and which of it is meant
    hanging_calls             calls that may hang, each in a thread of its own
    input_stream              one stream from a device through PortAudio, and its samples until they are taken
    microphone                a device through PortAudio: opened, watched, given up, opened again
    silero                    Silero's network in numpy: chunks of 32 ms -> probabilities of speech
    vad                       blocks -> speech and pauses
    sources                   live sound: microphone, file in real time, pipe; a microphone tried for a moment
"""
