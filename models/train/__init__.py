"""How the demo models are made: trained from the phrase book and espeak-ng alone. Needs torch (extra ``train``)."""
