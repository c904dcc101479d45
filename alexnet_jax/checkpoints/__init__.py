"""What a run saves: whole, sound, and read under any layout."""
