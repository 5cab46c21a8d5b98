"""What both ends of a split share: bundle, codec, frame, session, link, errors."""
